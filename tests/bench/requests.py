"""Ready requests for wrk: proven, each with a receipt of its own, written once before a load so that the load generator
only sends."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

PASSWORD, SIGNATURE_KEY, EVENT_TOKEN, SECURE_KEY = "bench-password", "bench-signature-key", "bench-token", "bench-key"

CONFIGURATION = f"""
[[endpoint]]
provider = "quickstream"
facility = "acme"
allowed_sources = ["127.0.0.0/8"]
username = "acme"
passwords = ["{PASSWORD}"]
supplier_business_codes = ["ACME"]

[[endpoint]]
provider = "checkout"
facility = "main"
signature_keys = ["{SIGNATURE_KEY}"]

[[endpoint]]
provider = "debitsuccess"
facility = "gym"
event_tokens = ["{EVENT_TOKEN}"]

[[endpoint]]
provider = "paymentz"
facility = "eu"
secure_keys = ["{SECURE_KEY}"]
"""

_FIELDS = {
    "sourceCode": "Net",
    "receiptNumber": "",
    "communityCode": "COMCODE",
    "supplierBusinessCode": "ACME",
    "customerReferenceNumber": "CUSTOMER1",
    "paymentReference": "PAYMENT1",
    "paymentAmount": "624.00",
    "surchargeAmount": "24.00",
    "cardScheme": "VISA",
    "settlementDate": "20170110",
    "createdDateTime": "10 Jan 2017 01:11:31",
    "responseCode": "00",
    "responseDescription": "Approved or completed successfully",
    "summaryCode": "0",
    "successFlag": "true",
    "customTitle": "Ms",
}
_BASIC = "Basic " + b64encode(f"acme:{PASSWORD}".encode()).decode()


def quickstream_form(receipt: str) -> bytes:
    fields = {**_FIELDS, "receiptNumber": receipt, "createdDateTime": "10+Jan+2017+01%3A11%3A31"}
    body = "&".join(f"{name}={value.replace(' ', '+')}" for name, value in fields.items()).encode()
    headers = {"Authorization": _BASIC, "Content-Type": "application/x-www-form-urlencoded"}
    return request("quickstream/acme", headers, body)


def quickstream_xml(receipt: str) -> bytes:
    fields = {**_FIELDS, "receiptNumber": receipt}
    body = "".join(f"    <{name}>{value}</{name}>\n" for name, value in fields.items())
    headers = {"Authorization": _BASIC, "Content-Type": "application/xml"}
    return request("quickstream/acme", headers, f"<PaymentResponse>\n{body}</PaymentResponse>\n".encode())


def checkout(receipt: str) -> bytes:
    event = {
        "id": f"evt_{receipt}",
        "type": "payment_captured",
        "version": "1.0.19",
        "created_on": "2022-11-06T18:20:39.7132933Z",
        "data": {
            "id": f"pay_{receipt}",
            "action_id": f"act_{receipt}",
            "reference": "ORD-5023-4E89",
            "amount": 800,
            "processed_on": "2022-11-06T18:20:32.7810927Z",
            "response_code": "10000",
            "response_summary": "Approved",
            "balances": {"total_authorized": 800, "total_captured": 800, "total_refunded": 0, "total_voided": 0},
            "metadata": {"order_id": "bench"},
            "currency": "USD",
            "processing": {"acquirer_transaction_id": "086695172334982342272"},
        },
        "_links": {"self": {"href": f"https://api.checkout.example/workflows/events/evt_{receipt}"}},
    }
    body = json.dumps(event, separators=(",", ":")).encode()
    signature = hmac.new(SIGNATURE_KEY.encode(), body, "sha256").hexdigest()
    return request("checkout/main", {"Cko-Signature": signature, "Content-Type": "application/json"}, body)


def debitsuccess(receipt: str) -> bytes:
    body = json.dumps({"FacilityNo": "DEA2", "ScheduleId": receipt, "AccountId": "DEA2345678", "Frequency": "Weekly"})
    headers = {
        "X-EventName": "Customer.Schedule.Suspension.Added",
        "X-Token": EVENT_TOKEN,
        "X-TraceId": receipt,
        "Content-Type": "application/json",
    }
    return request("debitsuccess/gym", headers, body.encode())


def paymentz(receipt: str) -> bytes:
    signed = f"{receipt}|ORDER-1|100.00|Y"
    body = {
        "paymentId": receipt,
        "status": "capturesuccess",
        "transactionStatus": "Y",
        "amount": "100.00",
        "currency": "EUR",
        "merchantTransactionId": "ORDER-1",
        "checksum": hashlib.md5(f"{signed}|{SECURE_KEY}".encode(), usedforsecurity=False).hexdigest(),
        "result": {"code": "00001", "description": "Transaction succeeded"},
        "paymentBrand": "VISA",
        "paymentMode": "CC",
    }
    return request("paymentz/eu", {"Content-Type": "application/json"}, json.dumps(body).encode())


KINDS: dict[str, Callable[[str], bytes]] = {
    "quickstream form": quickstream_form,
    "quickstream xml": quickstream_xml,
    "checkout": checkout,
    "debitsuccess event": debitsuccess,
    "paymentz": paymentz,
}

LUA = """
-- Sends the requests of a file one after the other: a line with the length, then the request.
local requests, next_one = {}, 0
function init(args)
  local file = io.open(args[1], "rb")
  while true do
    local length = file:read("*l")
    if not length then break end
    requests[#requests + 1] = file:read(tonumber(length))
  end
  file:close()
end
function request()
  next_one = next_one % #requests + 1
  return requests[next_one]
end
function done(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write, summary.errors.timeout, latency.max))
end
"""


def write(path: Path, kind: str, count: int, series: int) -> None:
    """`count` requests with receipts that no other series has."""
    make = KINDS[kind]
    with path.open("wb") as file:
        for number in range(count):
            request = make(f"{series:03d}{number:09d}")
            file.write(b"%d\n" % len(request))
            file.write(request)


def body_of(request: bytes) -> bytes:
    return request.partition(b"\r\n\r\n")[2]


def request(path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST /notify/{path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
