"""The parts of one request that is answered many times, from a worker's reply to whoever reads them."""
