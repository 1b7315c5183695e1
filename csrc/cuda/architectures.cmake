# Which GPU architectures to build for. CMake's all-major would do, but older versions of it list what newer nvccs dropped.

# What nvcc itself lists: the lowest of each major generation as machine code, and PTX of the last for GPUs to come.
# Below 70 the kernels do not compile: they take their arguments as __grid_constant__. 110 is Jetson Thor, which no x86-64 has.
function(major_architectures nvcc result)
  execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE listing ERROR_VARIABLE listing RESULT_VARIABLE status)
  string(REGEX MATCHALL "compute_[0-9]+[\r\n]" lines "${listing}\n")  # not compute_90a, whose code runs on one GPU only
  string(REGEX MATCHALL "[0-9]+" numbers "${lines}")
  list(SORT numbers COMPARE NATURAL)
  set(generations "")
  set(lowest "")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(REMOVE_ITEM numbers 110)
  endif()
  foreach(number IN LISTS numbers)
    math(EXPR generation "${number} / 10")
    if(number GREATER_EQUAL 70 AND NOT generation IN_LIST generations)
      list(APPEND generations ${generation})
      list(APPEND lowest ${number})
    endif()
  endforeach()
  if(NOT lowest)
    string(STRIP "${listing}" listing)
    message(FATAL_ERROR "'${nvcc} --list-gpu-arch' (exit status ${status}) names no architecture from compute_70 on, but "
      "'${listing}'; set DATGAN_FAST_CUDA_ARCHS to the architectures to build for, such as 80,90, or DATGAN_FAST_CUDA=0")
  endif()
  list(POP_BACK lowest newest)
  list(TRANSFORM lowest APPEND "-real")
  set(${result} ${lowest} ${newest} PARENT_SCOPE)
endfunction()

# What the user asks for, separated by commas or semicolons.
function(chosen_architectures choice result)
  string(REPLACE "," ";" entries "${choice}")
  foreach(entry IN LISTS entries)
    if(NOT entry MATCHES "^[0-9]+[af]?(-real|-virtual)?$")
      message(FATAL_ERROR "DATGAN_FAST_CUDA_ARCHS=${choice}: '${entry}' is no CUDA architecture; they are written 90, or "
        "90-real (machine code only), or 90-virtual (PTX only), separated by commas")
    endif()
  endforeach()
  set(${result} ${entries} PARENT_SCOPE)
endfunction()
