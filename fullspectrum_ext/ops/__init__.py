"""The native operators, with their derivatives."""
