"""From measurements and clinical observations to response, endpoints and safety tables; rules are data."""
