"""Several ranks and nodes. Read process_group, gradients, in_touch, rendezvous, elastic_agent."""
