import time
from .conftest import *
def test_x(cave, warden):
    def t(label, f, n=1):
        s=time.perf_counter()
        for _ in range(n): r=f()
        print(f"{label}: {(time.perf_counter()-s)/n*1e3:.2f} ms"); return r
    (cave.workspace/"f").write_text("x")
    t("list small", lambda: warden.call("list", path="."), 50)
    t("stat", lambda: warden.call("stat", path="f"), 50)
    t("search small", lambda: warden.call("search", path=".", pattern="x"), 20)
    t("snapshot small", lambda: warden.call("snapshot", path="."), 50)
    warden.run("cp -r /usr/lib/python3.11 lib; for i in $(seq 200); do mkdir -p many/$i; touch $(seq -f many/$i/%g 200); done")
    print(t("list all name", lambda: warden.call("list", path=".", depth=99, limit=50000))[0])
    print(t("list glob", lambda: warden.call("list", path=".", glob="**/*.py", limit=50000))[0])
    print(t("snapshot", lambda: warden.call("snapshot", path="."))[0])
    print(t("search lib", lambda: warden.call("search", path="lib", pattern=r"def \w+_name\("))[0])
    print(t("pack", lambda: warden.call("pack", path="lib"))[0])
    print(t("remove", lambda: warden.call("remove", path="many", recursive=True))[0])
    print(warden.call("stats")[0])
