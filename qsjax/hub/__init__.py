"""Model folders from the Hugging Face hub: resumed to the byte, checked, and found again without a network.

The hub's own client keeps nothing of a file that was begun, and a shard of these models is gigabytes; so its parts are used:
the listing, the headers, one ranged request. A file has its name only when all of it is there and has the hub's checksum.
"""

from qsjax.hub.address import Address as Address
from qsjax.hub.folder import download as download
from qsjax.hub.folder import listed_sha256 as listed_sha256
