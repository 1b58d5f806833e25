"""The web app: widgets over a service that has the model. Runs from a checkout or out of the wheel."""
