"""Measures of image sets, each number with its protocol: fidelity, agreement, memorization, utility."""
