// An empty libtorch_cuda.so to link against where torch is a CPU build: it gives the CUDA library
// its DT_NEEDED entry and is not installed. One line for each CUDA shim that the kernels call.
extern "C" {
int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }
int torch_c10_cuda_check_msg(int, const char*, const char*, unsigned, bool, char**) { return 1; }
void torch_c10_cuda_free_error_msg(char*) {}
}
