"""Kafka from its published jars: the versions pinned here, resolved and fetched by Maven."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from loadgen.brokers import install, java, process
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loadgen.brokers.state import Progress

VERSION = "4.3.1"
LOG4J_VERSION = "2.25.1"
NAME = f"kafka-{VERSION}"
MAVEN_TIMEOUT_S = 900.0
JARS_MIN = 50  # 92 in 4.3.1; far fewer means that Maven was content with too little

POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>loadgen</groupId><artifactId>kafka-broker</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


def ensure(cache: Path, progress: Progress) -> install.Installation:
    """Finds Kafka in the cache or installs it there."""
    if found := install.find(NAME, cache):
        return found
    install.need_program("mvn", what="installing Kafka", package="maven")
    chosen = java.find_java(cache, progress)
    environment = dict(os.environ)
    if chosen.is_relative_to(cache):  # Maven is to use the private one too
        environment["JAVA_HOME"] = str(chosen.parents[1])

    def build(folder: Path, progress: Progress) -> dict[str, str]:
        return _build(folder, environment, progress)

    return install.ensure(NAME, cache, build, progress)


def _build(folder: Path, environment: Mapping[str, str], progress: Progress) -> dict[str, str]:
    progress(f"Kafka: fetching {VERSION} with Maven, about 54 MB")
    pom = folder / "pom.xml"
    pom.write_text(POM, encoding="utf-8")
    libraries = folder / "libs"
    process.run(
        ["mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={libraries}"],
        what=f"fetching Kafka {VERSION} with Maven",
        timeout_s=MAVEN_TIMEOUT_S,
        environment=environment,
        cwd=folder,
    )
    jars = sorted(path.name for path in libraries.glob("*.jar"))
    if len(jars) < JARS_MIN or f"kafka_2.13-{VERSION}.jar" not in jars:
        raise BrokerError(f"Maven fetched {len(jars)} jars for Kafka {VERSION}, which is too few: try again")
    return {"kafka": VERSION, **dict(_name_and_version(jar) for jar in jars)}


def _name_and_version(jar: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+?)-(\d.*)\.jar", jar)
    return (match[1], match[2]) if match else (jar, "")
