"""Reports for people and machines: inspect, plan, export."""
