# Only this file decides how Chromium is started in a cave.
"""Chromium's command line: quiet, driven over the DevTools pipe, without a listening port."""

from __future__ import annotations

__all__ = ["MISSING", "command"]

MISSING = 127  # what the start line exits with when the cave has no Chromium

# `exec` makes the browser the process we hold, so its profile bears its number. It takes the profile of the name that it
# is given, which a browser has left; what others left, which are dead, goes.
_START = """
profile=/tmp/.ghost-browser.$1.$$
rm -rf "$profile"
mv /tmp/.ghost-browser.$1.* "$profile" 2>/dev/null && rm -f "$profile"/Singleton*
shift
for old in /tmp/.ghost-browser.*; do
  kill -0 "${old##*.}" 2>/dev/null || rm -rf "$old"
done
# With a network, the cave has a proxy; what is on its own loopback goes there directly. Where Chromium calls home
# all the same, it is led nowhere: nobody is told of refusals that no page asked for.
if [ -n "$http_proxy" ]; then
  set -- "--proxy-server=$http_proxy" "--proxy-bypass-list=update.googleapis.com;clients2.google.com;\
optimizationguide-pa.googleapis.com" "$@"
fi
for program in /usr/lib/chromium/chromium chromium chromium-browser google-chrome-stable google-chrome; do
  command -v "$program" >/dev/null && exec "$program" "--user-data-dir=$profile" "$@"
done
exit 127
"""

# Features that call home, change what a page gets, or draw a browser window that nobody sees.
_WITHOUT = (
    "AimEnabled",
    "HttpsFirstBalancedModeAutoEnable",
    "HttpsUpgrades",
    "LensOverlay",
    "MediaRouter",
    "NetworkTimeServiceQuerying",
    "OptimizationHints",
    "PaintHolding",
    "PreconnectToSearch",
    "Translate",
    "WebUIOmniboxAimPopup",
    "WebUIOmniboxFullPopup",
    "WebUIOmniboxPopup",
)

# In a window, which people see: it fills their screen, and nothing in it warns them of the flags below.
_SEEN = ("--test-type", "--start-maximized")
_FLAGS = (
    "--remote-debugging-pipe",
    # The cave is the barrier: it has no nested user namespaces to make another of.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-client-side-phishing-detection",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-field-trial-config",
    "--disable-infobars",
    "--disable-search-engine-choice-screen",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-pings",
    "--no-service-autorun",
    "--password-store=basic",
    # A tab that is not in front works on, and a picture of it can be taken.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    # Going back loads the page again: what an agent sees is never a frozen copy.
    "--disable-back-forward-cache",
    # Where the browser itself would look for an account: nowhere. Pages go to the real one.
    "--gaia-url=http://localhost:9",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--mute-audio",
    # A mouse, as with a screen: without one, pages take the browser for a telephone.
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
    "--enable-features=CDPScreenshotNewSurface,SkipListAccountsWithoutGaiaCookies",
    f"--disable-features={','.join(_WITHOUT)}",
)


def command(profile: str, *, seen: bool, restored: bool) -> list[str]:
    """The program and arguments that start the browser in a cave; exits with MISSING where there is none.

    ``profile``: letters and digits, a name in the cave. ``seen``: in a window, on the display that its environment
    names. ``restored``: with the tabs that the last browser of this profile had, else with none.
    """
    how = _SEEN if seen else ("--headless=new",)
    tabs = "--restore-last-session" if restored else "--no-startup-window"
    return ["sh", "-c", _START, "ghost-browser", profile, *how, tabs, *_FLAGS]
