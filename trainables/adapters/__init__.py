"""A trial inside other trainers: each module needs its trainer's package; losses, data and schedule are ours."""
