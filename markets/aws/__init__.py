"""AWS EC2 as a market. Judged against moto's server over loopback; unverified against the live service."""
