"""Protocol vcc2026: the metrics of the Virtual Cell Challenge 2026 on raw counts, and its scale."""
