# Julia's half of the kernel. Requests come on descriptor 3, answers go to 4; the program's own output is its own.
# A request is a length (8 bytes, little-endian) and code. An answer is a tag, and texts that each have a length:
#   'd' 'r'  mime and data, any number of pairs, count first: something shown, and the result
#   'e'      the error's name, its message, its traceback
#   'k'      done
using REPL

const ASKED = fdio(3, true)
const ANSWERS = fdio(4, true)
const MIMES = ("text/plain", "text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png")

struct Page <: AbstractDisplay end

function write_text(data)
    write(ANSWERS, htol(UInt64(sizeof(data))))
    write(ANSWERS, data)
end

function write_bundle(tag, value)
    context = :limit => true
    bundle = Pair{String,Vector{UInt8}}[]
    for mime in MIMES
        if Base.invokelatest(showable, mime, value)
            data = Base.invokelatest(sprint, show, MIME(mime), value; context = context)
            push!(bundle, mime => Vector{UInt8}(codeunits(data)))
        end
    end
    write(ANSWERS, tag)
    write(ANSWERS, htol(UInt64(length(bundle))))
    for (mime, data) in bundle
        write_text(mime)
        write_text(data)
    end
    flush(ANSWERS)
end

Base.display(::Page, value) = write_bundle('d', value)

function run(code, name)
    value = include_string(REPL.softscope, Main, code, name)
    quiet = value === nothing || endswith(rstrip(code), ';')
    quiet || write_bundle('r', value)
end

function explain(error, trace)
    error = error isa LoadError ? error.error : error
    frames = stacktrace(trace)
    ours = findfirst(frame -> frame.func === :include_string, frames)
    frames = ours === nothing ? frames : frames[1:ours-1]
    write(ANSWERS, 'e')
    write_text(string(nameof(typeof(error))))
    write_text(Base.invokelatest(sprint, showerror, error))
    write_text(sprint(Base.show_backtrace, frames))
end

function serve()
    count = 0
    while !eof(ASKED)
        size = ltoh(read(ASKED, UInt64))
        code = String(read!(ASKED, Vector{UInt8}(undef, size)))  # read() would wait for what follows
        count += 1
        try
            run(code, "In[$count]")
        catch error
            explain(error, catch_backtrace())
        end
        flush(stdout)
        flush(stderr)
        write(ANSWERS, 'k')
        flush(ANSWERS)
    end
end

# Interrupted, a computation ends with an InterruptException and Julia goes on.
ccall(:jl_exit_on_sigint, Cvoid, (Cint,), 0)
pushdisplay(Page())
while true
    try
        serve()
        break
    catch error  # interrupted between two requests
        error isa InterruptException || rethrow()
    end
end
