"""The state of a payment after one notification alone, for every word of every sender's table, by the provider pages.

Written down a second time, so that no slip in a module's table goes unseen. None: it says nothing of a payment.
"""

from __future__ import annotations

from receiver.errors import Reason

_BY_STATE: dict[str, dict[str | None, str]] = {
    # Summary codes.
    "quickstream": {"captured": "0", "declined": "1", "pending": "2", "failed": "3"},
    # Types.
    "checkout": {
        "pending": "payment_pending payment_capture_pending",
        "authorised": "payment_approved payment_authorization_incremented",
        "captured": """payment_captured
            dispute_canceled dispute_won dispute_arbitration_won dispute_resolved""",
        "declined": "payment_declined",
        "expired": "payment_expired",
        "cancelled": "payment_canceled",
        "voided": "payment_voided",
        "refunded": "payment_refunded",
        "failed": "payment_capture_declined payment_returned",
        "disputed": """payment_chargeback request_for_information_received dispute_received
            dispute_evidence_required dispute_evidence_submitted dispute_evidence_acknowledged_by_scheme
            dispute_accepted dispute_expired dispute_lost dispute_arbitration_evidence_submitted
            dispute_arbitration_sent_to_scheme dispute_arbitration_lost""",
        None: """payment_void_declined payment_refund_pending payment_refund_declined payment_paid
            payment_authorization_increment_declined payment_authentication_failed payment_compliance_review
            payment_authorized payment_retry_scheduled payment_optimized fraud_reported payment_retrieval
            payment_risk_matched payment_flagged source_updated source.updated
            authentication_started authentication_approved authentication_attempted authentication_expired
            authentication_failed card_verified card_verification_declined
            bank_account_updated batch_successful batch_unsuccessful
            authorization_approved authorization_declined reversal_approved presentment_received 3ds_card_enrolled
            issuing_dispute_closed sub_entity_created status_changed payments_enabled payments_disabled
            transfer_status_changed payouts_enabled payouts_disabled payout_paid payout_declined vmss_passed
            vmss_failed match_passed match_failed full_dd_passed full_dd_failed
            payment_instrument_verification_passed payment_instrument_verification_failed
            charge.succeeded charge.captured charge.captured.deferred charge.captured.failed charge.pending
            charge.chargeback charge.failed charge.refunded charge.refunded.failed charge.retrieval charge.voided
            charge.voided.failed card.updated invoice.cancelled""",
    },
    # Statuses of casual payments, and the types of the event webhooks.
    "debitsuccess": {
        "captured": "success cleared settled",
        "declined": """declined declined_insufficient_funds declined_card_expired declined_do_not_honour
            declined_refer_to_card_issuer""",
        "failed": "error failure contractprefixinvalid failed not_submitted",
        "expired": "tokenexpired",
        "authorised": "authorized authorised",
        "pending": "pending processing statusrequired requires3ds",
        None: "Customer.Schedule.Suspension.Added Customer.Schedule.Suspension.Updated",
    },
    # Long statuses.
    "paymentz": {
        "pending": "begun authstarted 3d_authstarted capturestarted",
        "authorised": "authsuccessful",
        "captured": "capturesuccess settled",
        "declined": "authfailed",
        "failed": "capturefailed failed",
        "cancelled": "authcancelled cancelled",
        "refunded": "reversed",
        "disputed": "chargeback",
        None: "cancelstarted markedforreversal payoutstarted payoutsuccessful payoutfailed",
    },
}

STATES: dict[str, dict[str, str | None]] = {
    provider: {word: state for state, words in by_state.items() for word in words.split()}
    for provider, by_state in _BY_STATE.items()
}
"""By provider and word."""

OTHERWISE: dict[str, dict[str, str | None]] = {
    "checkout": {
        # The money is gone.
        "dispute_resolved__rapid": "disputed",
        # Payouts.
        "payment_approved__payout": None,
        "payment_declined__payout": None,
        "payment_returned__payout": None,
        # A part went back, and the capture that it is of says so.
        "payment_refunded__octopus_partial": "partially_refunded",
        "payment_refunded__partial_first": "partially_refunded",
        "payment_refunded__partial_second": "partially_refunded",
    },
}
"""Fixtures whose body says more than its word."""

QUARANTINED: dict[str, dict[str, Reason]] = {
    "quickstream": {
        "amount_with_separator": Reason.UNREADABLE_BODY,
        "invalid_utf8": Reason.UNREADABLE_BODY,
        "long_receipt": Reason.UNREADABLE_BODY,
        "missing_amount": Reason.MISSING_FIELD,
        "negative_amount": Reason.CONTRADICTORY_FIELDS,
        "no_content_type": Reason.UNREADABLE_BODY,
        "nul_character": Reason.UNREADABLE_BODY,
        "octane_token_form": Reason.UNKNOWN_DOCUMENT,
        "other_business": Reason.OTHER_BUSINESS,
        "payto_json": Reason.UNREADABLE_BODY,
        "registration": Reason.UNKNOWN_DOCUMENT,
        "repeated_different": Reason.CONTRADICTORY_FIELDS,
        "repeated_different_scheme": Reason.CONTRADICTORY_FIELDS,
        "success_flag_disagrees": Reason.CONTRADICTORY_FIELDS,
        "success_flag_true_declined": Reason.CONTRADICTORY_FIELDS,
        "success_flag_true_processing": Reason.CONTRADICTORY_FIELDS,
        "unknown_summary": Reason.CONTRADICTORY_FIELDS,
        "xml_billion_laughs": Reason.UNREADABLE_BODY,
        "xml_doctype": Reason.UNREADABLE_BODY,
        "xml_external_entity": Reason.UNREADABLE_BODY,
        "xml_mixed_content": Reason.UNREADABLE_BODY,
        "xml_not_well_formed": Reason.UNREADABLE_BODY,
        "xml_unknown_root": Reason.UNKNOWN_DOCUMENT,
    },
}
"""Fixtures of what is proven and cannot be believed; by the part of the name after the event."""
