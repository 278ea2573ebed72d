"""What is there to be taken in: plates of images and tables of profiles, each with what tells whether it changed.

Nothing but manifests is opened. A folder is listed once, however many files of it are asked for.
"""

from warehouse.arrivals.look import Arrival
from warehouse.arrivals.plates import gallery_layout, images
from warehouse.arrivals.tables import profiles

__all__ = ["Arrival", "gallery_layout", "images", "profiles"]
