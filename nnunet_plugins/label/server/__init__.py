"""The part of `mambamed label` that needs MONAI Label; only the server imports it."""
