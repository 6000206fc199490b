"""The models that are served, by name and version. This is what every router works with:

    models: Registry = ...                          given to each router's function, as in app.create_app
    model = models.get(name, version)               "" is the first model, and its newest version; UnknownModelError
    model.facts                                     server.judged.Facts: name, version, classes, heads, size, ...
    judged = await model.judge(image, fusion="", deadline=None, gone=None)
                                                    image: encoded bytes, or (S, S, 3) uint8 pixels; server.judged.Judged
    value = await model.ask(Task(image, kind=...))  another kind of work: a function in server.worker.TASKS, run in a
                                                    model worker, (Bundle, (S, S, 3) uint8 pixels, Task) -> anything
                                                    that can be pickled (attention maps, say)
    models.listed()                                 each name and version with its state, for a repository index
    await models.load(name)                         read that bundle's folder again; RunError, and the old one serves on
    await models.unload(name)

Whatever goes wrong is an ImageError or a server.refusals.Refusal; refusals.status_of and headers_of say how to
answer it. Many images of one request: asyncio.gather(*..., return_exceptions=True), so one spoils no other.
deadline: seconds to wait for a worker, at most; None is the settings'. gone: tells whether the client has gone away.
"""
