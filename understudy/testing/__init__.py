"""What tests of actors and agents need: a fake model endpoint, virtual time, stores with faults."""
