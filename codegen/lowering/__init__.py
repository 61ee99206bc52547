"""From a scheduled cascade to a kernel plan: `lower`, and its parts from there down."""
