"""`mambamed label`: bundles and nnU-Net results behind MONAI Label's HTTP interface.

What can be said without MONAI Label lies here; `server` imports it, and is imported by the server
alone.
"""
