"""Several gateways on one journal: which of them live, which sessions they own, and requests for each other's sessions.

`membership` renews this gateway's lease and takes over sessions of dead gateways. `forwarding` forwards requests for
sessions of other gateways. The shared state is in `gateway.journal.postgres`.
"""

from gateway.cluster.forwarding import Forwarding
from gateway.cluster.membership import Membership

__all__ = ["Forwarding", "Membership"]
