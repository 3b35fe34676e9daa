// Depth in metres of one picture, with onnxruntime alone:  depth MODEL.onnx PICTURE.ppm DEPTH.pgm [cuda]
//
// The model is a file made by export/to_onnx.py, with float32 or uint8 input; the picture a binary PPM
// (convert photo.jpg photo.ppm); the depth a PGM of 16 bits, millimetres, of the picture's own size.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>

using Plane = std::vector<float>;  // one channel, row after row

std::vector<uint8_t> read_ppm(const std::string& path, int& height, int& width) {
  std::ifstream file(path, std::ios::binary);
  std::string kind, most;
  file >> kind >> width >> height >> most;
  if (kind != "P6" || most != "255" || std::min(height, width) < 1 || std::max(height, width) > 1 << 14)
    throw std::runtime_error(path + (file.is_open() ? ": not a binary PPM of 8 bits" : ": cannot be read"));
  std::vector<uint8_t> rgb(size_t(3) * height * width);
  if (!file.ignore(1).read(reinterpret_cast<char*>(rgb.data()), rgb.size()))
    throw std::runtime_error(path + ": cut off");
  return rgb;
}

// Rows of `width` to rows of `to`, transposed, so two calls resize; `smooth` averages and rounds as Pillow does.
Plane stretch(const Plane& in, int height, int width, int to, bool smooth) {
  Plane out(size_t(to) * height);
  const float scale = float(width) / to, reach = smooth ? std::max(scale, 1.f) : 1.f;
  for (int i = 0; i < to; ++i) {
    const float centre = std::clamp((i + .5f) * scale - .5f, 0.f, width - 1.f);
    const int first = std::max(0.f, std::ceil(centre - reach)), last = std::min(width - 1.f, centre + reach);
    for (int y = 0; y < height; ++y) {
      float sum = 0, weights = 0;
      for (int x = first; x <= last; ++x) {
        const float weight = 1 - std::abs(x - centre) / reach;
        sum += weight * in[size_t(y) * width + x];
        weights += weight;
      }
      out[size_t(i) * height + y] = smooth ? std::round(sum / weights) : sum / weights;
    }
  }
  return out;
}

Plane depth_of(std::vector<uint8_t>& rgb, int height, int width, const char* path, bool cuda) {
  Ort::Env env(ORT_LOGGING_LEVEL_FATAL);
  Ort::SessionOptions options;
  if (cuda) options.AppendExecutionProvider_CUDA({});  // throws where there is none
  Ort::Session session(env, path, options);
  const auto metadata = session.GetModelMetadata().LookupCustomMetadataMapAllocated(
      "size", Ort::AllocatorWithDefaultOptions());
  int h = 0, w = 0;
  if (!metadata || std::sscanf(metadata.get(), "[%d, %d]", &h, &w) != 2)
    throw std::runtime_error(std::string(path) + ": not made by depthzoo's to_onnx.py");
  const auto type = session.GetInputTypeInfo(0);
  const auto tensor = type.GetTensorTypeAndShapeInfo();
  auto shape = tensor.GetShape();  // (N, 3, H, W) or (N, H, W, 3), -1 where it is open
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const char *image = "image", *depth = "depth";
  Plane planes;
  Ort::Value input{nullptr};
  if (tensor.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) {  // takes the picture as it is
    shape = {1, h = height, w = width, 3};
    input = Ort::Value::CreateTensor(memory, rgb.data(), rgb.size(), shape.data(), 4);
  } else {  // takes planes in [0, 1]: of a fixed size, or of this area, the picture's aspect, multiples of 32
    const double area = h * w, scale = std::sqrt(area / height / width) / 32, most = h * w / 1024 * 32;
    h = shape[2] > 0 ? shape[2] : std::clamp(32 * std::nearbyint(height * scale), 32., most);
    w = shape[3] > 0 ? shape[3] : std::clamp(32 * std::nearbyint(width * scale), 32., most);
    for (int channel = 0; channel < 3; ++channel) {
      Plane plane(rgb.size() / 3);
      for (size_t i = 0; i < plane.size(); ++i) plane[i] = rgb[3 * i + channel];
      plane = stretch(stretch(plane, height, width, w, true), w, height, h, true);
      for (const float value : plane) planes.push_back(value / 255);
    }
    shape = {1, 3, h, w};
    input = Ort::Value::CreateTensor(memory, planes.data(), planes.size(), shape.data(), 4);
  }
  const auto output = session.Run(Ort::RunOptions{}, &image, &input, 1, &depth, 1);
  const auto metres = output[0].GetTensorData<float>();
  return stretch(stretch({metres, metres + size_t(h) * w}, h, w, width, false), width, h, height, false);
}

int main(int count, char** words) try {
  if (count < 4) throw std::runtime_error("usage: depth MODEL.onnx PICTURE.ppm DEPTH.pgm [cuda]");
  int height = 0, width = 0;
  auto rgb = read_ppm(words[2], height, width);
  const Plane depth = depth_of(rgb, height, width, words[1], count > 4 && std::string(words[4]) == "cuda");
  std::ofstream file(words[3], std::ios::binary);
  file << "P5\n" << width << " " << height << "\n65535\n";
  for (const float metres : depth) {
    const long millimetres = std::clamp(std::lround(metres * 1000), 0l, 65535l);
    file.put(char(millimetres >> 8)).put(char(millimetres & 255));
  }
  if (!file.flush()) throw std::runtime_error(std::string(words[3]) + ": cannot be written");
} catch (const std::exception& error) {
  std::cerr << "depth: error: " << error.what() << "\n";
  return 2;
}
