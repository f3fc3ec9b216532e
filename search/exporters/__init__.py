"""A study's best configuration for other trainers: one file a target, each registered under its name."""
