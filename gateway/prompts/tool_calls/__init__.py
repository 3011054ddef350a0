"""Tool calls: describe tools to a model, constrain its calls, and find calls in its answer.

Model families write calls in different formats. The chat template shows which one a model uses. If the template does
not support tools, a message describes them, and asks for the most common format.
"""
