"""Single sign-on as a person has it: an identity provider, and a proxy of their own that knows who has signed in there.

The provider is oidc-provider-mock. The proxy is Debian's mod_auth_openidc in Apache, at the addresses and with the headers of
oauth2-proxy, which no package index has. Both listen on this machine, where a VPS gets to by its gateway.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.vps.shell import apt_install

MODULES = "mpm_event authn_core authz_core authz_user headers rewrite auth_openidc"
CONFIGURATION = """
ServerRoot {directory}
ServerName {address}
Listen {address}:{port}
PidFile {directory}/pid
ErrorLog {directory}/error.log
User www-data
Group www-data
{modules}
OIDCProviderMetadataURL {provider}/.well-known/openid-configuration
OIDCClientID prefect
OIDCClientSecret hush-4711
OIDCRedirectURI {public}/oauth2/callback
OIDCCryptoPassphrase hush-4711-hush-4711
OIDCScope "openid email profile"
OIDCXForwardedHeaders X-Forwarded-Host X-Forwarded-Proto
OIDCPassClaimsAs environment
RewriteEngine On
RewriteMap unescape int:unescape
<Location /oauth2/>
    AuthType openid-connect
    Require valid-user
</Location>
<Location /oauth2/auth>
    OIDCUnAuthAction 401
    Header always set X-Auth-Request-Email "expr=%{{reqenv:OIDC_CLAIM_email}}"
    Header always set X-Auth-Request-Groups "expr=%{{reqenv:OIDC_CLAIM_groups}}"
    RewriteRule ^ - [R=204,L]
</Location>
<Location /oauth2/sign_in>
    RewriteCond %{{QUERY_STRING}} ^rd=([^&]*)$
    RewriteRule ^ {public}${{unescape:%1}} [R=302,NE,QSD,L,UnsafeAllow3F]
</Location>
"""


class SignOn:
    """Provider and proxy, for as long as the block lasts. `users` are those that the provider knows: claims by subject."""

    def __init__(self, directory: Path, address: str, public: str, users: Mapping[str, Mapping[str, Any]]) -> None:
        """
        Args:
            directory: of files that nobody else needs.
            address: of this machine, as the VPS sees it.
            public: https://DOMAIN of the server.
        """
        self._directory, self._address, self._public, self._users = directory, address, public, users
        free = [socket.create_server((address, 0)) for _ in range(2)]
        self._provider_port, self._port = (one.getsockname()[1] for one in free)
        for one in free:
            one.close()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Of the proxy: prefect_sso_proxy."""
        return f"http://{self._address}:{self._port}"

    def __enter__(self) -> SignOn:
        if not shutil.which("apache2", path="/usr/sbin"):
            # No service: these packages are Apache's program and the module alone.
            apt_install(["apache2-bin", "libapache2-mod-auth-openidc"], "Signing in")
        provider = f"http://{self._address}:{self._provider_port}"
        claims = [
            word
            for subject, more in self._users.items()
            for word in ("--user-claims", json.dumps({"sub": subject, **more}))
        ]
        listen = ["--host", self._address, "--port", str(self._provider_port)]
        self._start(sys.executable, "-m", "oidc_provider_mock", *listen, *claims)
        modules = "\n".join(
            f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in MODULES.split()
        )
        file = self._directory / "apache.conf"
        file.write_text(
            CONFIGURATION.format(
                directory=self._directory,
                address=self._address,
                port=self._port,
                modules=modules,
                provider=provider,
                public=self._public,
            )
        )
        self._wait(self._provider_port)
        self._start("/usr/sbin/apache2", "-X", "-f", str(file))
        self._wait(self._port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            # Apache, as it is started here, does not end by itself.
            process.kill()
        for process in self._processes:
            process.wait(20)

    def _start(self, *command: str) -> None:
        with (self._directory / f"{Path(command[0]).name}.log").open("ab") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self._directory))

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((self._address, port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self._processes[-1].poll() is None
                time.sleep(0.1)
