"""Several ranks and nodes. Read process_group, rendezvous, elastic_agent."""
