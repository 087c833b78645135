"""The native operators in plain torch: the definition of right."""
