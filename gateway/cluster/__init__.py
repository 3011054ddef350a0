"""Other gateways on the same journal: who lives, who has which session, and requests that belong to one of them.

`membership` keeps this gateway's lease and takes over from those that died; `forwarding` passes on what is asked of a
session that another has. What they know of one another stands in `gateway.journal.postgres`.
"""

from gateway.cluster.forwarding import Forwarding
from gateway.cluster.membership import Membership

__all__ = ["Forwarding", "Membership"]
