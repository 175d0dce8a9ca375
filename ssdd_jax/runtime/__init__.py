"""What runs steps: the loop, batches, devices, hosts, memory. It knows no method."""
