"""The ledger: what each call has used, and what that costs."""
