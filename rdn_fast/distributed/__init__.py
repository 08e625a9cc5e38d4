"""Several ranks and nodes. Read process_group, in_touch, rendezvous, elastic_agent."""
