"""Models, folders and files of the Hugging Face hub: resumed to the byte, checked, and found again without a network.

The hub's own client keeps nothing of a file that was begun, and a shard of these models is gigabytes; so its parts are used:
the listing, the headers, ranged requests. A file has its name only when all of it is there and has the hub's checksum.
"""

from qsjax.hub.address import SCHEME as SCHEME
from qsjax.hub.address import Address as Address
from qsjax.hub.folder import beginning as beginning
from qsjax.hub.folder import fetch as fetch
from qsjax.hub.folder import is_there as is_there
from qsjax.hub.folder import look as look
from qsjax.hub.folder import missing as missing
from qsjax.hub.folder import require_network as require_network
from qsjax.hub.listing import File as File
from qsjax.hub.listing import Listing as Listing
