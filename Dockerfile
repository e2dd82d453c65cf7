# The image of docker-compose.yml: built from source, one binary, no compiler in the result.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The caches make a second build quick; the binary is copied out because a cache mount is not part of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/sluice /usr/local/bin/sluice

FROM debian:bookworm-slim
RUN useradd --system --home-dir /var/lib/sluice --create-home sluice
COPY --from=build /usr/local/bin/sluice /usr/local/bin/sluice
COPY config/production.toml /etc/sluice/production.toml
USER sluice
WORKDIR /var/lib/sluice
VOLUME /var/lib/sluice
EXPOSE 8080
# Ready, not merely alive: readiness knows the ledger, the gate and the log. bash speaks enough HTTP for it.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=5 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200'"]
ENTRYPOINT ["sluice"]
CMD ["serve", "--config", "/etc/sluice/production.toml"]
