"""Any model keeps codes: rules for its operations, and what memory they take."""
