"""Tasks, records, knowledge, batches: every arrow of an example's way from a TSV row to arrays."""

import util  # noqa: F401  (first: it says what is not installed)
