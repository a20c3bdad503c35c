"""Money: an append-only double-entry ledger in integer nano-USD, holds, accrual, allotment, exports."""
