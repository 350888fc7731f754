// SPDX-License-Identifier: Apache-2.0
// A C++ program that runs a model compiled by AOTInductor, with our operators inside: test_compile.py builds and runs it.
// usage: run_package LIBRARY PACKAGE INPUT ROWS COLUMNS OUTPUT; INPUT and OUTPUT are raw fp32, there is no Python here.
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 3;
  }
  const long rows = std::atol(argv[4]), columns = std::atol(argv[5]);
  at::Tensor x = at::empty({rows, columns}, at::kFloat);
  std::ifstream(argv[3], std::ios::binary)
      .read(static_cast<char*>(x.mutable_data_ptr()), static_cast<long>(x.nbytes()));
  torch::inductor::AOTIModelPackageLoader loader(argv[2]);
  std::vector<at::Tensor> inputs = {x};
  const at::Tensor result = loader.run(inputs)[0].contiguous();
  std::ofstream(argv[6], std::ios::binary)
      .write(static_cast<const char*>(result.const_data_ptr()), static_cast<long>(result.nbytes()));
  std::printf("%ld %ld\n", static_cast<long>(result.size(0)), static_cast<long>(result.size(1)));
  return 0;
}
