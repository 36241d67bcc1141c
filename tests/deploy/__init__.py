"""What deploy/ has is used as it stands there: files that real programs start with, or that real schemas allow."""
