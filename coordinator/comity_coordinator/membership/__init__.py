"""Who may use the transport: invitations, enrolment, rotation, revocation."""
