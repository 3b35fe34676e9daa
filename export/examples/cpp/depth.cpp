// Predict the depth of one image with onnxruntime alone:  depth MODEL.onnx IMAGE.ppm DEPTH.pgm [cpu|cuda]
//
// MODEL.onnx is made by export/to_onnx.py --uint8, which resizes inside. IMAGE.ppm is a binary PPM
// (convert photo.jpg photo.ppm), DEPTH.pgm a 16-bit PGM in millimetres, of the same size.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <limits>

// Reads one word of a PPM header. Comments run from # to the end of the line.
std::string read_word(std::istream& file) {
  std::string word;
  while (file >> word && word[0] == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  return word;
}

std::vector<uint8_t> read_ppm(const std::string& path, int64_t& height, int64_t& width) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  const std::string kind = read_word(file);
  width = std::atoi(read_word(file).c_str());
  height = std::atoi(read_word(file).c_str());
  if (kind != "P6" || read_word(file) != "255" || std::min(height, width) < 1 || std::max(height, width) > 1 << 14)
    throw std::runtime_error(path + ": not a binary PPM of 8 bits");
  std::vector<uint8_t> rgb(3 * height * width);
  if (!file.ignore(1).read(reinterpret_cast<char*>(rgb.data()), rgb.size()))
    throw std::runtime_error(path + ": cut off");
  return rgb;
}

int main(int count, char** words) try {
  const std::string device = count > 4 ? words[4] : "cpu";
  if (count < 4 || count > 5 || (device != "cpu" && device != "cuda"))
    throw std::runtime_error("usage: depth MODEL.onnx IMAGE.ppm DEPTH.pgm [cpu|cuda]");
  int64_t height = 0, width = 0;
  std::vector<uint8_t> rgb = read_ppm(words[2], height, width);

  Ort::Env env(ORT_LOGGING_LEVEL_FATAL);
  Ort::SessionOptions options;
  if (device == "cuda") options.AppendExecutionProvider_CUDA({});  // throws where there is none
  Ort::Session session(env, words[1], options);
  const auto type = session.GetInputTypeInfo(0);
  if (type.GetTensorTypeAndShapeInfo().GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
    throw std::runtime_error(std::string(words[1]) + ": not made by export/to_onnx.py --uint8");
  const std::array<int64_t, 4> shape{1, height, width, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto input = Ort::Value::CreateTensor(memory, rgb.data(), rgb.size(), shape.data(), shape.size());
  const char *image = "image", *depth = "depth";
  const auto output = session.Run(Ort::RunOptions{}, &image, &input, 1, &depth, 1);
  const float* metres = output[0].GetTensorData<float>();

  std::ofstream file(words[3], std::ios::binary);
  file << "P5\n" << width << " " << height << "\n65535\n";
  for (int64_t i = 0; i < height * width; ++i) {
    const long millimetres = std::clamp(std::lround(metres[i] * 1000), 0l, 65535l);
    file.put(char(millimetres >> 8)).put(char(millimetres & 255));
  }
  if (!file.flush()) throw std::runtime_error(std::string(words[3]) + ": cannot be written");
} catch (const std::exception& error) {
  std::cerr << "depth: error: " << error.what() << "\n";
  return 2;
}
