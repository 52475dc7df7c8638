from edge import *
