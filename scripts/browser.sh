# Sourced by test.sh: find a browser for the tests of the web page; as root on Debian, install chromium where none is.
# BROWSER_TESTS=required then makes a browser that does not start a failure; without a browser these tests are skipped.
find_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
if ! find_browser > /dev/null && [ -z "${SKIP_SETUP:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "Installing chromium for the tests of the web page"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; } > /dev/null 2>&1 || true
fi
if find_browser > /dev/null; then
    export BROWSER_TESTS=required
else
    echo "No browser: the tests of the web page in one are skipped. Install chromium, or run this as root on Debian."
fi
