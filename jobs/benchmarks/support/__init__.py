"""What measurements need and the product does not: clusters on one machine, a store with faults, processes watched.

May import `cluster` and `pipeline`.
"""
