# The command, from outside: exit status and output; and the library, from where `cmake --install` puts it.
set(ci ${CMAKE_SOURCE_DIR}/tests/ci)

# command(name seconds status pattern arguments...): exit status and a pattern (grep -E) that the output must have
function(command name seconds status pattern)
    check(${name} cli ${seconds} ${ci}/expect.sh ${status} ${pattern} $<TARGET_FILE:ferry_command> ${ARGN})
endfunction()

# What takes its time, most of it in waiting, is run by the plain build and under the address sanitizer.
if(FERRY_LINT OR FERRY_SANITIZE MATCHES "thread")
    set(slow OFF)
else()
    set(slow ON)
endif()

command(version 10 0 "^ferry ${PROJECT_VERSION}$" --version)
command(help 10 0 "^usage: ferry COMMAND" help)
command(help_bench 10 0 "--layout" help bench)
command(no_command 10 2 "^usage: ferry COMMAND")
command(wrong_command 10 2 "'frobnicate' is no command" frobnicate)
command(wrong_option 10 2 "--ranks" bench --ranks=0)
# From outside a group of which one rank is stopped, as text, timeline and page.
if(slow)
    foreach(part text page)
        check(trace_${part} cli 180 python3 ${CMAKE_SOURCE_DIR}/tests/trace/run.py $<TARGET_FILE:ferry_command> $<TARGET_FILE:trace_rank> ${part})
        set_tests_properties(cli.trace_${part} PROPERTIES SKIP_RETURN_CODE 77)
    endforeach()
endif()
command(trace_list 10 0 "^(group|no group)" trace)

command(info 10 0 "FERRY_TIMEOUT_MS" info)
check(info_json cli 10 sh -c "\"$1\" info --json - | python3 -m json.tool >/dev/null" sh $<TARGET_FILE:ferry_command>)

set(small bench --check --ranks 2 --tokens 64 --hidden 256 --experts 8 --topk 2 --iters 3 --warmup 1)
foreach(mode throughput latency)
    foreach(layout rank expert slots)
        command(bench_${mode}_${layout} 60 0 "^check: ok$" ${small} --mode ${mode} --layout ${layout})
    endforeach()
endforeach()
# What machines read: every figure of the JSON is there, and makes sense.
check(bench_json cli 60 sh -c "\"$@\" | python3 -c '
import json, sys
d = json.load(sys.stdin)
assert d[\"check\"] == \"ok\" and d[\"config\"][\"ranks\"] == 2, d
c = d[\"counters\"]
assert len(c[\"ranks\"]) == 2 and c[\"expert_load\"] >= 1 and all(r[\"rows_sent\"] > 0 and r[\"rows_dropped\"] == 0 for r in c[\"ranks\"]), c
for step in (\"dispatch\", \"combine\"):
    s = d[step]
    assert 0 < s[\"min_us\"] <= s[\"median_us\"] <= s[\"p99_us\"], s
    assert s[\"bytes\"] > 0 and s[\"gbps\"] > 0 and s[\"floor_us\"] > 0 and s[\"of_floor\"] > 0, s
'" sh $<TARGET_FILE:ferry_command> ${small} --json -)
command(bench_json_to_nowhere 60 1 "nowhere" ${small} --json /nowhere/at/all)
command(bench_bad_trace 10 1 "not-there.jsonl" bench --routes not-there.jsonl)
command(demo_bad_text 10 1 "not-there.txt" demo --text not-there.txt)
command(bench_threads 60 0 "^check: ok$" ${small} --ranks-as threads --threads 2)
command(bench_cast 60 0 "^check: ok$" ${small} --layout expert --dtype fp8 --cast)
command(bench_fp8 60 0 "^check: ok$" ${small} --dtype fp8 --deliver-topk --zero-copy no --seed 7 --skew 1.1)
command(bench_weighted 60 0 "^check: ok$" ${small} --weighted yes --layout expert)
command(bench_trace 60 0 "^check: ok$" bench --check --hidden 256 --iters 3 --routes ${ci}/small.routes.jsonl --layer 1)
if(LIBFABRIC_INCLUDE) # which rank's sentence is printed is open: its own, or that another could not open the network
    foreach(wrong FLAGS=2 RAILS=5 ADDRESS=127.0.0.1,127.0.0.2,127.0.0.3,127.0.0.4,127.0.0.5)
        string(REGEX REPLACE "=.*" "" name ${wrong})
        check(bench_fabric_${name} cli 30 ${ci}/expect.sh 1 FERRY_INVALID ${CMAKE_COMMAND} -E env FERRY_HOSTS=2
              FERRY_FABRIC_${wrong} $<TARGET_FILE:ferry_command> bench --ranks 2 --tokens 8)
    endforeach()
endif()
command(bench_batch_cpu 10 2 "--batch goes with" bench --batch 3)
command(demo_wrong_option 10 2 "--steps" demo --steps many)
command(info_wrong_option 10 2 "--frobnicate" info --frobnicate)
command(info_cuda 10 0 "^device +cuda: .*(GPU|libferry_cuda)" info)
if(NOT FERRY_SANITIZE) # it computes, which sanitizers make slow, and other tests carry the same rows
    check(demo cli 120 sh -c "\"$1\" demo --short --svg demo.svg | grep -x verified && grep -q '</svg>' demo.svg"
          sh $<TARGET_FILE:ferry_command>)
endif()

# The examples, as their readers have them: the public header and the shared library.
file(GLOB examples CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/examples/*.c)
list(FILTER examples EXCLUDE REGEX "/(mpi|openshmem)\\.c$") # want compilers of their own: tests/ci/launchers.sh
foreach(example ${examples})
    get_filename_component(name ${example} NAME_WE)
    add_executable(example_${name} ${example})
    target_link_libraries(example_${name} PRIVATE ferry Threads::Threads)
    check(example_${name} cli 60 example_${name})
endforeach()
if(TARGET ferry_cuda) # run by tests/cuda/run
    add_executable(example_kernel ${CMAKE_SOURCE_DIR}/examples/kernel.cu)
    set_target_properties(example_kernel PROPERTIES CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static)
    set_property(TARGET example_kernel PROPERTY COMPILE_OPTIONS "")
    target_link_libraries(example_kernel PRIVATE ferry Threads::Threads)
endif()

# The model, and what it is worth: no more than these percents away from what was measured and not used to calibrate it.
set(topologies ${CMAKE_SOURCE_DIR}/examples/topologies)
set(model bench --model --topology)
command(model 10 0 "^ +4096 +512 .* NICs" ${model} ${topologies}/h800-cx7.json --groups 4 --dtype fp8)
command(model_proxy 10 0 " messages " ${model} ${topologies}/h800-cx7-proxy.json --mode latency --layout slots --ranks 4096)
command(model_deepep 10 0 "^3 of 20 times.* others: 4.[0-9]% on average" ${model} ${topologies}/h800-cx7.json
        --against ${topologies}/deepep-published.json --within 10)
command(model_one_host 10 0 "^3 of 20 times.* others: 7.[0-9]% on average" ${model} ${topologies}/pretend-hosts.json
        --against ${CMAKE_SOURCE_DIR}/bench/results/2026-11-25-one-host.json --within 25)
command(model_pretend_hosts 10 0 "^2 of 48 times.* others: 11.[0-9]% on average" ${model}
        ${topologies}/pretend-hosts-avx2.json --against ${CMAKE_SOURCE_DIR}/bench/results/2026-11-29-pretend-hosts.json)
command(model_within 10 1 "^more than the 1% of --within$" ${model} ${topologies}/h800-cx7.json
        --against ${topologies}/deepep-published.json --within 1)
command(model_no_file 10 1 "not-there.json: No such file" ${model} not-there.json)
command(model_alone 10 2 "go together" bench --model)
command(model_ranks 10 2 "only --model takes more" bench --ranks 65)
# What a bench writes is what the model reads.
check(model_of_a_bench cli 60 sh -c "\"$1\" bench --ranks 2 --tokens 64 --hidden 256 --iters 3 --json model.json &&
    \"$1\" bench --model --topology \"$2\" --against model.json | grep -x '0 of 2 times.*'"
      sh $<TARGET_FILE:ferry_command> ${topologies}/pretend-hosts.json)

# ferry run, and other launchers.
command(run 30 0 "^1 of 2$" run -n 2 -- sh -c "echo \$FERRY_RANK of \$FERRY_RANKS")
command(run_help 10 0 "--hosts FILE" help run)
if(slow)
    check(run_promises cli 200 ${ci}/run.sh $<TARGET_FILE:ferry_command>)
endif()
command(bench_other_ranks 30 2 "--ranks 3, but the launcher has 2" run -n 2 -- $<TARGET_FILE:ferry_command> bench --ranks 3)
if(slow AND NOT FERRY_SANITIZE) # a sanitizer's library needs the sanitizer in whatever links it
    check(launchers cli 300 ${ci}/launchers.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
    check(install install 120 ${ci}/install.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
endif()
