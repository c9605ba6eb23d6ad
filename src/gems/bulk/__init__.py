"""Bulk runs: many prompts, one record of results, on one machine or on a Ray cluster."""
