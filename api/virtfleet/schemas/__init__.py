"""What the API takes and gives, as pydantic models. What is given is made from rows by `of`."""
