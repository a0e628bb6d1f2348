"""Task metrics that are independent of the reward, and the report."""
