"""The training stages. They run from a checkout: `python -m training.STAGE --config FILE`."""
