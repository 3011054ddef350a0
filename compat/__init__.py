"""Request and response types of other projects' APIs, and adapters to other libraries."""
