"""Several ranks and nodes. Read waiting, process_group, gradients, in_touch, rendezvous, elastic_agent."""
